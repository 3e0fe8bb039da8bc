"""Answers questions about published indexes over gRPC."""
