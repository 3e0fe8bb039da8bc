"""Sub-commands that ask a server, one module each."""
