-- name: handler_times_add
-- why: what a process has measured since it last wrote; every process of a consumer adds to the same rows. The day is the
--      database's, so that processes with clocks of their own agree on it.
-- locks: the rows
-- index: handler_times_pkey
INSERT INTO {schema}.handler_times AS t (consumer, day, bucket, handled, seconds)
SELECT %(consumer)s, (statement_timestamp() AT TIME ZONE 'UTC')::date, m.bucket, m.handled, m.seconds
  FROM unnest(%(buckets)s::smallint[], %(handled)s::bigint[], %(bucket_seconds)s::float8[]) AS m (bucket, handled, seconds)
 ORDER BY m.bucket
    ON CONFLICT (consumer, day, bucket) DO UPDATE SET handled = t.handled + excluded.handled, seconds = t.seconds + excluded.seconds

-- name: handler_times_forget
-- why: handlers change with every deploy: only the last days say how long they take now. It reads the table once; that has a
--      few dozen rows for each consumer and day.
-- locks: the rows
-- index: none
DELETE FROM {schema}.handler_times WHERE day <= (statement_timestamp() AT TIME ZONE 'UTC')::date - %(days)s::integer

-- name: handler_times_read
-- why: how long the handlers of each consumer take, for the lease that they need.
-- locks: none
-- index: none
SELECT consumer, day, bucket, handled, seconds
  FROM {schema}.handler_times
 WHERE day > (statement_timestamp() AT TIME ZONE 'UTC')::date - %(days)s::integer
 ORDER BY consumer, day, bucket
