"""Characters from pictures: files of adapters, and from what an encoder sees in a picture to tokens for attention."""
