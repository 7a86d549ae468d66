-- name: doctor_settings
-- why: whether a commit is durable and a consumer can work, as a new session of this role has it; and where each setting
--      comes from, because that is where it must be changed. A setting that the server does not know has no row.
-- locks: none
-- index: none
SELECT name, setting, source
  FROM pg_settings
 WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit', 'default_transaction_read_only', 'transaction_timeout')

-- name: doctor_session
-- why: who asks, of what kind of server, and how many sessions this role may have there: the smallest of three limits, of
--      which -1 is none.
-- locks: none
-- index: none
SELECT session_user::text, current_database()::text, pg_is_in_recovery(),
       least(current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer,
             nullif(d.datconnlimit, -1), nullif(r.rolconnlimit, -1)) AS connections_max
  FROM pg_database AS d, pg_roles AS r
 WHERE d.datname = current_database() AND r.rolname = session_user
