"""What models are asked: pairs of prompts, as strings and as tokens, and the numbers that say how well they answer."""
