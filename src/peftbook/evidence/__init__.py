"""What numbers rest on and how they are shown: the rule of uncertainty, its ledger, and one description of a chart."""
