"""Networks, one client's work, and evaluation."""
