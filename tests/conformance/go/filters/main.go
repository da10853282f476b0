// Filters says what containerd's own filters find: each line of its input is a JSON document with a
// filter and a snapshot, each line of its output "true", "false", or "refused".
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/filters"
	"github.com/sirupsen/logrus"
)

type question struct {
	Filter string
	Name   string
	Parent string
	Kind   string
	Labels map[string]string
}

// field is what snapshots/storage gives the filters of a snapshot (adaptSnapshot).
func (q question) field(path []string) (string, bool) {
	if len(path) == 0 {
		return "", false
	}
	switch path[0] {
	case "kind":
		return q.Kind, true
	case "name":
		return q.Name, true
	case "parent":
		return q.Parent, true
	case "labels":
		value, found := q.Labels[strings.Join(path[1:], ".")]
		return value, found
	}
	return "", false
}

func main() {
	logrus.SetOutput(io.Discard) // bad regular expressions
	questions := json.NewDecoder(os.Stdin)
	for {
		var asked question
		if err := questions.Decode(&asked); err == io.EOF {
			return
		} else if err != nil {
			fmt.Fprintln(os.Stderr, "filters:", err)
			os.Exit(1)
		}
		filter, err := filters.ParseAll(asked.Filter)
		if err != nil {
			fmt.Println("refused")
			continue
		}
		fmt.Println(filter.Match(filters.AdapterFunc(asked.field)))
	}
}
