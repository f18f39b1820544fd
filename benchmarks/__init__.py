"""Speed and accuracy studies, each a command with a recorded result."""
