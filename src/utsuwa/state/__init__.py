"""What the engine knows: where it is kept, the database, the life of a container."""
