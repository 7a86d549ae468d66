-- How long the handlers of each consumer take: counted by duration, each day in rows of its own, so that all processes of a
-- consumer add to the same few rows, and old days go.
CREATE TABLE {schema}.handler_times (
    consumer  text     NOT NULL,
    day       date     NOT NULL,  -- UTC, by the database's clock
    bucket    smallint NOT NULL,  -- of durations up to 1 ms * 2^(bucket/4)
    handled   bigint   NOT NULL,  -- so many handlers
    seconds   float8   NOT NULL,  -- took so long, all together
    CONSTRAINT handler_times_pkey PRIMARY KEY (consumer, day, bucket)
);
