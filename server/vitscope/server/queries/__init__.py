"""The answers, as plain arrays read from one generation."""
