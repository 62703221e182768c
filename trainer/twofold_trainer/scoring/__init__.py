"""From predictions to scores, confidence intervals and non-inferiority tests."""
