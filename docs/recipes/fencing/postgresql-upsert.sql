-- The same for a row that may not be there yet.
INSERT INTO account (id, balance, fence) VALUES (:'id', :balance, :token)
ON CONFLICT (id) DO UPDATE SET balance = EXCLUDED.balance, fence = EXCLUDED.fence
WHERE account.fence <= EXCLUDED.fence
RETURNING id, balance, fence;
