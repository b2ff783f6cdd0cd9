"""What a story is: its characters, its frames, its files and its pages."""
