"""What every job needs and no method does: atomic files, named seeds, progress, devices, provenance."""
