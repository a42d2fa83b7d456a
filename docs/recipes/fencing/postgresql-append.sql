-- The row lock on the fence puts the writes of an old and a new leader in order; nothing is added behind a higher token.
WITH passed AS (
  UPDATE fence SET token = :token WHERE resource = 'ledger' AND token <= :token RETURNING token
)
INSERT INTO ledger (what, fence) SELECT :'what', token FROM passed
RETURNING entry, what, fence;
