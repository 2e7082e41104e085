"""Training the methods that learn: `trainer` runs any of them, a lesson beside it says what is learned from."""
