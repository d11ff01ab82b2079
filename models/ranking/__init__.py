"""Models that score what a user was shown: fields of an impression, crossed, through experts, to a logit for each label."""
