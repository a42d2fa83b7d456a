// Package partition says which coordinator of a queue holds which of its partitions: by locks in Consul, balanced over the coordinators
// that live.
//
// What it promises:
//
//   - No two coordinators hold a partition at the same moment, whatever dies, hangs or is cut off. A hold ends by the boot clock of its
//     holder, before Consul can give it to another; an answer that comes after that proves nothing. The one exception is an operator who
//     ends the session, or removes the lock, of a coordinator: it loses what it has when it hears of it, which takes some milliseconds,
//     and others wait for 250 ms or more; one that is cut off from Consul at that moment holds on until Until.
//   - A hold is clean only if the holder before said with Give that everything of it had ended, or nobody ever held the partition. Lost,
//     ended by hand, deleted or stopped without Give is not clean.
//   - Shares differ by one at most. A coordinator keeps what it has, up to its share; one that joins is given the surplus of the others,
//     once they give it, and nothing else moves.
//   - Epochs of a partition grow with each hold. (A Consul that is restored from a snapshot may count from below.)
//
// How long it takes, with the default session of 10 s:
//
//   - A coordinator that stops and has given what it had: others hold it as soon as their watch shows it; measured for four: 15 to 65 ms.
//   - One that dies silently, or loses its way to Consul: it has lost all after 8 s at most. Consul ends its session after up to twice the
//     TTL, and others hold what it had a twentieth of the TTL later (250 ms at least): 20.5 s at most, 17.6 to 19.9 s in five rounds. (2.0 s
//     with a TTL of 1 s.)
//   - One that starts again under the same ID is back at once, with what it had: it ends the session of the process before. Measured: 15 to
//     32 ms. For that the ID must be the coordinator's alone; a second one of the same name gets nothing, and View says so.
//   - Consul down: what is held stays held for up to 8 s, and is then lost. A new session is made as soon as Consul answers.
//
// How it is built: plan decides who shall hold what, the same for all who see the same; machine decides what this coordinator holds and
// asks, without clock or network; run owns it in one goroutine; store makes the requests.
//
// What it needs in Consul: to write below PREFIX/partitions/, and the sessions and the entry of the catalog node VirtualNode.
package partition
