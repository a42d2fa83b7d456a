package source

// Classes says from which priority class to take next, so that urgent ones
// go first and none starves: smooth weighted round robin with the weight
// (class+1)². Of 14 messages of three full classes, 9 are of class 2, 4 of
// class 1 and 1 of class 0. A class that is empty leaves its turns to the
// others. The zero value with N set is ready; one goroutine uses it.
type Classes struct {
	N       int
	current [MaxClasses]int
}

// Weight is a class's share.
func Weight(class int) int { return (class + 1) * (class + 1) }

// Next returns the class whose turn it is among those that have something, or -1 where none has.
func (c *Classes) Next(has func(class int) bool) int {
	best, total := -1, 0
	for class := c.N - 1; class >= 0; class-- {
		if !has(class) {
			// An empty class saves up no turns.
			c.current[class] = 0
			continue
		}
		c.current[class] += Weight(class)
		total += Weight(class)
		if best < 0 || c.current[class] > c.current[best] {
			best = class
		}
	}
	if best >= 0 {
		c.current[best] -= total
	}
	return best
}

// Split divides max turns between all classes, for brokers that are asked for a number of messages of each. Classes that turn
// out empty leave their part unused; ask again for the rest.
func (c *Classes) Split(max int) [MaxClasses]int {
	var parts [MaxClasses]int
	for range max {
		parts[c.Next(func(int) bool { return true })]++
	}
	return parts
}
