"""The Story World: cartoon characters in scenes, drawn from attributes, with captions; the truth of each is known."""
