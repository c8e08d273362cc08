"""One function per kernel call; no policy, no defaults. See README.md in this folder."""
