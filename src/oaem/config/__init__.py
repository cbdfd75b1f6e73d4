"""What a grid is: its values, read and checked before anything is planned; a run and a geometry, by name."""
