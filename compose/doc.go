// Package compose puts a pattern around somebody's own job specification, and
// takes it away again: HCL in, HCL out.
//
// It promises that not one byte of the user's own text changes: what it adds
// stands between two comments, `# retinue:PATTERN begin` and `# retinue:PATTERN
// end`, and Remove takes exactly that away. So comments, dynamic blocks,
// functions and variables stay as they were written, the result still runs
// with `nomad job run -var-file`, and the Nomad UI shows it readably.
//
// It needs a Fragment of the pattern, which stands beside its job
// specification in jobspecs/.
package compose
