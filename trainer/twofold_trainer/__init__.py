"""One job, then exit: train both heads, adapt one, export, prove, judge, publish. The only package with torch."""
