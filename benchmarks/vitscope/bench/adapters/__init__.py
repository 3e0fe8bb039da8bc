"""One script for each tool, run by the tool's own interpreter; nothing of vitscope is there."""
