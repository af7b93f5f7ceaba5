"""Which gradient elements travel."""
