"""What XLA made of a function: its text, and what it moves through memory."""
