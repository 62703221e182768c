"""What keeps the protected task: the guard, the distillation teacher and null-space projection."""
