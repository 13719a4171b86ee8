"""One module per system: the web, the lake, the warehouse, Postgres. They know the system and no business rule."""
