"""What the rest of the program asks of an engine: its descriptor, and the table of all of them."""
