"""What differs between the tasks: model, training stream, what a batch is given of the global one, evaluation."""
