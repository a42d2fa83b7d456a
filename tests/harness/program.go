package harness

// Program is a program on PATH as a feature. promised says that .ci/run installs it.
func Program(name string, promised bool) Feature {
	return NewFeature(name, promised, missingBinary(name))
}

// NewFeature is a feature of which only one package's tests know. missing says why the machine lacks it; nil is no lack.
func NewFeature(name string, promised bool, missing func() error) Feature {
	return Feature{Name: name, Promised: promised, missing: missing}
}
