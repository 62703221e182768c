"""Scores before and after training, the gate's verdict, and the findings for the report."""
