"""How fast vitscope is: measured beside floors, other tools and the limits of the machine."""
