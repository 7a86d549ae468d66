"""Public: what the tests of a user of Onceward may use."""
