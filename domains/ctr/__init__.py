"""Click-through rate prediction: AutoInt, AutoInt+ and logistic regression."""
