"""The life of an Adapt job: validate, submit, run a trainer process, roll out its candidate, preempt and take over."""
