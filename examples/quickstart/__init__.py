"""The smallest whole program: two tools, one worker, two calls."""
