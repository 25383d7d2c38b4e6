"""Tuning: the search for schedules, its judges (measurement and cost model), its log, and what is made of the log."""
