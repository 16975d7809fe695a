-- 003: what an operator's retry leaves behind.
--
-- Attempts up to this number were given up for good when the task was last retried: their results
-- are late, for they may come from the program as it was before it was mended.

ALTER TABLE tasks ADD COLUMN late_until INTEGER NOT NULL DEFAULT 0;
