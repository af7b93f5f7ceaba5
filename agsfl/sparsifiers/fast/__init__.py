"""The methods as one CPU or accelerator runs them fastest."""
