"""What is run by hand: checks and benches. A package of its own, so that no installed one of this name is found."""
