"""``make gpu``: tests and measurements on a machine with a GPU and little else, within a deadline."""
