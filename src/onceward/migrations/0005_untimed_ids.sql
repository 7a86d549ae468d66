-- Ids that are not UUIDv7 carry no time, so no day's partition can hold them. Their rows have a key that is made from the id's
-- text: a UUID of version 8 whose first byte is ff. A UUIDv7 with that byte would be of a year after 10,000. Everything from
-- there on is one partition of its own, so that the same statements serve these rows too.
-- No upkeep retires this partition. It prunes what is over in it, and from then on such an id would be taken as new.

-- The table of version 1 was keyed by the text, and nothing ever wrote to it.
DROP TABLE {schema}.inbox_untimed;

-- LIKE and ATTACH, as upkeep makes a day: a CREATE TABLE ... PARTITION OF would wait for every open handler.
CREATE TABLE {schema}.inbox_untimed (LIKE {schema}.inbox INCLUDING ALL);
CREATE TABLE {schema}.intents_untimed (LIKE {schema}.intents INCLUDING ALL);
ALTER TABLE {schema}.inbox ATTACH PARTITION {schema}.inbox_untimed
      FOR VALUES FROM ('ff000000-0000-0000-0000-000000000000') TO (MAXVALUE);
ALTER TABLE {schema}.intents ATTACH PARTITION {schema}.intents_untimed
      FOR VALUES FROM ('ff000000-0000-0000-0000-000000000000') TO (MAXVALUE);

-- What is over, oldest first: what upkeep prunes. Days need no such index, because they go as a whole.
CREATE INDEX inbox_untimed_over ON {schema}.inbox_untimed (consumer, taken_at) WHERE state IN ('done', 'discarded');
