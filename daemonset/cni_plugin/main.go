// SPDX-License-Identifier: Apache-2.0

// Command ambit-cni is the last plugin of a node's CNI chain: a pod starts when the node agent says
// that it is captured, or left alone. It decides nothing itself and changes nothing.
//
// It is not Python because it is run by the container runtime, on hosts that may have no interpreter.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	// The agent answers an ADD within AMBIT_CNI_TIMEOUT_S (30); runtimes wait for minutes.
	addTimeout = 40 * time.Second
	// What ends a pod must not wait for an agent that is gone: it finds out by itself when it is back.
	delTimeout = 5 * time.Second

	// Codes of the CNI specification, section 5, "Error".
	codeBadEnvironment = 4
	codeDecode         = 6
	codeTryAgain       = 11
	codeRefused        = 100

	newestVersion = "1.1.0"
)

var versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", newestVersion}

// config is this plugin's part of the chain's configuration, with what the plugin before it answered.
type config struct {
	CNIVersion        string          `json:"cniVersion"`
	Socket            string          `json:"socket"`
	ExcludeNamespaces []string        `json:"excludeNamespaces"`
	PrevResult        json.RawMessage `json:"prevResult"`
}

type result struct {
	IPs []struct {
		Address string `json:"address"`
	} `json:"ips"`
}

// request and answer are the lines of the agent's socket.
type request struct {
	Command   string   `json:"cmd"`
	UID       string   `json:"uid"`
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Netns     string   `json:"netns,omitempty"`
	IPs       []string `json:"ips,omitempty"`
}

type answer struct {
	Result string `json:"result"`
	Reason string `json:"reason"`
	Code   string `json:"code"`
}

// failure is what the runtime is told; it tries again.
type failure struct {
	CNIVersion string `json:"cniVersion"`
	Code       int    `json:"code"`
	Message    string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (f *failure) Error() string { return f.Message }

func main() {
	os.Exit(run(os.Getenv, os.Stdin, os.Stdout))
}

// run carries one call out; what is written to out is the answer of the specification.
func run(getenv func(string) string, in io.Reader, out io.Writer) int {
	command := getenv("CNI_COMMAND")
	if command == "VERSION" {
		return write(out, map[string]any{"cniVersion": newestVersion, "supportedVersions": versions})
	}
	var conf config
	if err := json.NewDecoder(in).Decode(&conf); err != nil {
		return fail(out, newestVersion, &failure{Code: codeDecode, Message: "the configuration is no JSON: " + err.Error()})
	}
	var err error
	switch command {
	case "ADD":
		err = add(getenv, conf)
	case "DEL":
		del(getenv, conf)
		return 0
	case "CHECK", "STATUS", "GC":
		// The agent itself looks after what it set up, and after itself.
		return 0
	default:
		err = &failure{Code: codeBadEnvironment, Message: fmt.Sprintf("CNI_COMMAND is %q", command)}
	}
	if err != nil {
		return fail(out, conf.CNIVersion, err)
	}
	return write(out, conf.PrevResult)
}

func add(getenv func(string) string, conf config) error {
	if len(conf.PrevResult) == 0 {
		return &failure{Code: codeDecode, Message: "there is no prevResult: ambit-cni must be the last plugin of a chain"}
	}
	var previous result
	if err := json.Unmarshal(conf.PrevResult, &previous); err != nil {
		return &failure{Code: codeDecode, Message: "prevResult: " + err.Error()}
	}
	pod, err := podOf(getenv)
	if err != nil || slices.Contains(conf.ExcludeNamespaces, pod.Namespace) {
		return err
	}
	pod.Command, pod.Netns = "ADD", getenv("CNI_NETNS")
	for _, ip := range previous.IPs {
		pod.IPs = append(pod.IPs, ip.Address)
	}
	told, err := ask(conf.Socket, pod, addTimeout)
	if err != nil {
		return &failure{Code: codeTryAgain, Message: fmt.Sprintf(
			"Ambit's node agent does not answer at %s; pods of this node start when it does", conf.Socket),
			Details: err.Error()}
	}
	switch told.Result {
	case "enrolled", "ignored":
		return nil
	}
	return &failure{Code: codeRefused, Message: fmt.Sprintf(
		"Ambit's node agent: %s [%s]", told.Reason, told.Code)}
}

func del(getenv func(string) string, conf config) {
	pod, err := podOf(getenv)
	if err != nil || slices.Contains(conf.ExcludeNamespaces, pod.Namespace) {
		return
	}
	pod.Command, pod.Netns = "DEL", getenv("CNI_NETNS")
	// A pod must be able to end whatever the agent says.
	_, _ = ask(conf.Socket, pod, delTimeout)
}

// podOf reads the pod from CNI_ARGS, as the kubelet's runtimes fill it in.
func podOf(getenv func(string) string) (request, error) {
	args := map[string]string{}
	for _, pair := range strings.Split(getenv("CNI_ARGS"), ";") {
		key, value, _ := strings.Cut(pair, "=")
		args[key] = value
	}
	pod := request{UID: args["K8S_POD_UID"], Namespace: args["K8S_POD_NAMESPACE"], Name: args["K8S_POD_NAME"]}
	if pod.UID == "" || pod.Namespace == "" || pod.Name == "" {
		return pod, &failure{Code: codeBadEnvironment,
			Message: "CNI_ARGS has not all of K8S_POD_UID, K8S_POD_NAMESPACE and K8S_POD_NAME: is the runtime too old?"}
	}
	return pod, nil
}

func ask(socket string, line request, timeout time.Duration) (answer, error) {
	var told answer
	connection, err := net.DialTimeout("unix", socket, timeout)
	if err != nil {
		return told, err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(timeout)); err != nil {
		return told, err
	}
	if err := json.NewEncoder(connection).Encode(line); err != nil {
		return told, err
	}
	text, err := bufio.NewReader(connection).ReadBytes('\n')
	if err != nil {
		return told, err
	}
	return told, json.Unmarshal(text, &told)
}

func write(out io.Writer, value any) int {
	if err := json.NewEncoder(out).Encode(value); err != nil {
		return 1
	}
	return 0
}

func fail(out io.Writer, version string, err error) int {
	var known *failure
	if !errors.As(err, &known) {
		known = &failure{Code: codeRefused, Message: err.Error()}
	}
	known.CNIVersion = version
	write(out, known)
	return 1
}
