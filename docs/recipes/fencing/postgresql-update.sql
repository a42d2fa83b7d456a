-- No row comes back: a newer leader has written this one (or there is none). Stop.
UPDATE account SET balance = :balance, fence = :token
WHERE id = :'id' AND fence <= :token
RETURNING id, balance, fence;
