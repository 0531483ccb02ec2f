"""Tables with patient-level splits, and cohorts whose truth is known."""
