"""What is drawn for a person to read: boards with captions, sheets of tokens and similarities, heat maps."""
