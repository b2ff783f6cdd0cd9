"""What a token of a story's prompt belongs to: a frame prompt, by the frame's number from 0, or one of these."""

SOT, IDENTITY, EOT = -1, -2, -3
