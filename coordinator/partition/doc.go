// Package partition says which coordinator of a queue holds which of its partitions.
//
// What it promises: no two coordinators hold a partition at the same moment.
package partition
