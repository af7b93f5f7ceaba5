"""What each of many clients keeps between the rounds in which it takes part."""
