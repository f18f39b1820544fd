"""What caching across steps skips, and what that costs the picture."""
